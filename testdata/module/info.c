__attribute__((section(".modinfo"), used)) static const char name[] = "name=small";
__attribute__((section(".modinfo"), used)) static const char vermagic[] = "vermagic=0.0.0-test SMP mod_unload";
