extern int stop(void);
extern long nap(long ms);
extern void note(long value);
extern void take(void), give(void);
extern long count, other;

int loop(void *data)
{
	long *mine = data;

	while (!stop()) {
		count += 1;
		nap(10);
		*mine += 1;
	}
	return 0;
}
