"""What schemes with triggers share: inputs and labels, how they are trained in, and the evidence."""
