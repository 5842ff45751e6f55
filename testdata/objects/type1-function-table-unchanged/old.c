static int get(void) { return 1; }
static int put(void) { return 2; }
struct ops { int (*get)(void); int (*put)(void); };
const struct ops ops = { get, put };
