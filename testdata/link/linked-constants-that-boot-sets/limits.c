unsigned long limit;
unsigned int order;
