struct a { int x; }; struct b { int x; }; struct s { struct a *p; int (*call)(struct a *); } s; struct a *q; struct b b; struct a a;
