static int get(void) { return 1; }
static int swap(void) { return 3; }
struct ops { int (*get)(void); int (*put)(void); };
const struct ops ops = { get, swap };
