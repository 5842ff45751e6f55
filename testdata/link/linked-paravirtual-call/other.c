static void flags(void) { }
void (*pv_ops[4])(void) = { flags, flags, flags, flags };
