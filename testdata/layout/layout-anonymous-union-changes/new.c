struct page { unsigned long flags; union { struct { void *next; int prev; }; struct { short order; } buddy; }; int count; } page;
