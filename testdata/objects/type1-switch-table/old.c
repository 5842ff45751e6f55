int weight(int n)
{
	switch (n) {
	case 0: return 12; case 1: return 7; case 2: return 99; case 3: return 5; case 4: return 31; case 5: return 8;
	default: return 0;
	}
}
int other(int n)
{
	switch (n) {
	case 0: return 2; case 1: return 17; case 2: return 9; case 3: return 55; case 4: return 3; case 5: return 81;
	default: return 0;
	}
}
