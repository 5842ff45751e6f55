extern int stop(void);
extern long nap(long ms);
extern void note(long value);
extern void take(void), give(void);
extern long count, other;

int loop(void *data)
{
	while (!stop()) {
		nap(10);
		note(1);
		nap(10);
	}
	return 0;
}
