static int listed __attribute__((section("lucos_unheard_of"))) = 1;
int f(int n) { return n * 5 + listed; }
