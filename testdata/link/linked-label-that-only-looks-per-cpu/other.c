__attribute__((section(".data..percpu"))) int zero = 7;
