extern int remote;
int *f(int n) { asm volatile("movabs $remote, %%rax" ::: "rax"); return &remote + n; }
