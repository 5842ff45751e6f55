int f(long *from)
{
	long n;
	asm volatile goto("jmp 6f\n\t.pushsection .altinstr_aux, \"ax\"\n6: mov (%1), %0\n7: jmp %l[done]\n\t.popsection\n\t.pushsection __ex_table, \"a\"\n\t.long 6b - .\n\t.long 7b - .\n\t.long 5\n\t.popsection" : "=r" (n) : "r" (from) : : done);
	return 2;
done:
	return 3;
}
