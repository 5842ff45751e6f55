struct item { long a, b, c, d, e; };
void take(const struct item *);
void f(void) { struct item item = { 11, 12, 13, 14, 15 }; take(&item); }
void g(void) { struct item item = { 21, 22, 23, 24, 25 }; take(&item); }
