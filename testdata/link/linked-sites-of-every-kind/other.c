void __x86_indirect_thunk_rax(void) { }
void __x86_return_thunk(void) { }
int counter;
