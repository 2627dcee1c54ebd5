"""Released checkpoints in their authors' layouts, brought into ours: strict, every tensor accounted for, no foreign framework."""
