struct wire { char tag; int length; } wire;
