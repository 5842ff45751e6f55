void find(const unsigned short *);
void first(void) { find(L"SecureBoot"); }
void second(void) { find(L"SetupMode"); }
