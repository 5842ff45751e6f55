struct s { int new_name; char *text; } s;
