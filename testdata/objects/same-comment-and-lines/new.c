/* A comment. */

static const char *names[] = {
	"a", /* first */
	"b",
};

const char *name(int n) { return names[n & 1]; }

int twice(int n)
{
	int both = n + n;
	return both;
}
