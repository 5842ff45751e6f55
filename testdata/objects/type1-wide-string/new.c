void find(const unsigned short *);
void first(void) { find(L"SecureBoat"); }
void second(void) { find(L"SetupMode"); }
