struct other { long a; };
struct inner { int a, b; };
struct user { struct inner *pointer; int used; };
struct added { char c[3]; };
struct user user;
struct other other;
struct inner inner;
struct added added;
