/* The outer type grows because the inner one does; the pointer to it does not care. */
struct inner { int count; char flag; };
struct outer { char first; struct inner inner[2]; long last; };
struct holder { struct outer *pointer; };
struct outer global;
struct holder holder;
