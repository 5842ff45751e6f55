typedef unsigned long blk_t; struct req { char c; blk_t block; } req; blk_t last;
