package test

func conformResourceCases() []conformCase { return nil }
