struct a { int x; }; struct b { int x; }; struct s { struct b *p; int (*call)(struct a *, ...); } s; struct b *q; struct b b; struct a a;
