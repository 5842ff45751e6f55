__attribute__((section(".data..percpu"))) int zero = 7;
__attribute__((section(".data..percpu"))) int remote = 8;
