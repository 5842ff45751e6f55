extern int stop(void);
extern long nap(long ms);
extern void note(long value);
extern void take(void), give(void);
extern long count, other;

int loop(void *data)
{
	long *where = stop() ? &count : data;

	while (!stop()) {
		nap(10);
		*where += 1;
	}
	return 0;
}
