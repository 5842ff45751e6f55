/* Only a declaration is seen; the patch makes the definition visible and moves another type. */
struct inner;
struct user { struct inner *pointer; int used; };
struct other { long a; };
struct user user;
struct other other;
