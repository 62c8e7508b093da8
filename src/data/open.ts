/** Labelled pictures at a path, whatever their form: what every command that takes a data set calls. */

import { type Dataset, imageFolder, type ImageFolderOptions } from './folder.js'
import { findLabelList, multiLabelFolder } from './multiLabel.js'
import { isPrepared, preparedDataset } from './prepared.js'
import { findShards, webDataset } from './shards.js'

/**
 * Opens class folders, lists of pictures with several labels (see multiLabel.ts), WebDataset shards (shards.ts) or prepared pictures
 * (prepared.ts).
 * @throws whatever the form found there throws: ERR_DATA, ERR_FILE, ERR_FORMAT.
 */
export async function openDataset(path: string, options: ImageFolderOptions = {}): Promise<Dataset> {
  if (isPrepared(path)) return preparedDataset(path)
  if (findLabelList(path) !== undefined) return multiLabelFolder(path, options)
  if (findShards(path).length > 0) return webDataset(path, options)
  return imageFolder(path, options)
}
