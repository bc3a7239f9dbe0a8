"""What the op families share: argument checks, the native libraries, and the registration of an op."""
