extern int stop(void);
extern long nap(long ms);
extern void note(long value);
extern void take(void), give(void);
extern long count, other;

int loop(void *data)
{
	static void *const ways[] = { &&one, &&two };

	while (!stop()) {
		nap(10);
		goto *ways[count & 1];
one:
		note(1);
		continue;
two:
		note(3);
	}
	return 0;
}
