void use(int n) { }
