void use(long n) { }
