void (*operations[4])(void);
