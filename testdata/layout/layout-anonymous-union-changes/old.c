struct page { unsigned long flags; union { struct { void *next, *prev; }; struct { int order; } buddy; }; int count; } page;
