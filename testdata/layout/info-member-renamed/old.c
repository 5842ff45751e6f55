struct s { int old_name; const char *text; } s;
