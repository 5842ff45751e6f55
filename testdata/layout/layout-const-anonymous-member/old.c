struct fault { const struct { int gfp; void *vma; }; int flags; } *fault; int use(void) { return fault->gfp + fault->flags; }
