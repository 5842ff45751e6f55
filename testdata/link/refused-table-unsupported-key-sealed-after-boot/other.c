struct key { long enabled, entries; };
struct key hardened __attribute__((section(".data..ro_after_init"))) = { 1 };
