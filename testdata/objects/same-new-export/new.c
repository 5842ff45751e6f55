int check(int n) { return n; }
asm(".section \"___ksymtab+check\", \"a\"\n\t.balign 4\n\t.long check - .\n\t.previous");
