struct fault { const struct { long gfp; void *vma; }; int flags; } *fault; int use(void) { return fault->gfp + fault->flags; }
