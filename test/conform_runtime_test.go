package test

func conformRuntimeCases() []conformCase { return nil }
