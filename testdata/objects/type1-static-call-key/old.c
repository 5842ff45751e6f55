long key_a, key_b;
void call(void) { asm volatile("1: call trampoline\n\t.pushsection .static_call_sites, \"aw\"\n\t.long 1b - .\n\t.long %c0 - .\n\t.popsection" : : "i" (&key_a)); }
void other(void) { asm volatile("1: call trampoline\n\t.pushsection .static_call_sites, \"aw\"\n\t.long 1b - .\n\t.long %c0 - .\n\t.popsection" : : "i" (&key_b)); }
