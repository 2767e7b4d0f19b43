package main

import "context"

func (b *bench) profile(ctx context.Context) error { return nil }
