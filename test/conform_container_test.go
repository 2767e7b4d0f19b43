package test

func conformContainerCases() []conformCase { return nil }
