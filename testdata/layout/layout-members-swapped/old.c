typedef struct { int a; unsigned int b; } pair_t;
struct box { pair_t pair; } box;
static pair_t hidden; int *where(void) { return &hidden.a; }
