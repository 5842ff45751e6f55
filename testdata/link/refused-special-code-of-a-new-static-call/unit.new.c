int trampoline(int);
asm(".pushsection .static_call.text, \"ax\"\n.globl trampoline\n.type trampoline, @function\ntrampoline: jmp target\n.size trampoline, . - trampoline\n.popsection");
int f(int n) { return trampoline(n); }
int target(int n) { return n; }
