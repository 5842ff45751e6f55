struct inner { int count; char flag; unsigned long mask; };
struct outer { char first; struct inner inner[2]; long last; };
struct holder { struct outer *pointer; };
struct outer global;
struct holder holder;
