int use(int);
int f(int n)
{
	static const void *const places[] = { &&a, &&b, &&c };
	goto *places[n];
a:	use(1);
b:	use(2);
c:	return use(3);
}
