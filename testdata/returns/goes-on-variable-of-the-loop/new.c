extern int stop(void);
extern long nap(long ms);
extern void note(long value);
extern void take(void), give(void);
extern long count, other;

int loop(void *data)
{
	long *mine = data;
	long rounds = 0;

	while (!stop()) {
		nap(10);
		*mine += ++rounds;
		count += 2;
	}
	return 0;
}
