typedef struct { unsigned int b; int a; } pair_t;
struct box { pair_t pair; } box;
static pair_t hidden; int *where(void) { return &hidden.a; }
