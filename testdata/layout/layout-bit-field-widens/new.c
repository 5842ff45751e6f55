struct flags { unsigned int a : 4; unsigned int b : 5; unsigned int : 4; unsigned long wide : 40; } flags;
